"""An exported reranker as a policy of LeRobot's: type ``deas``.

LeRobot finds a policy's class and processors by the names of modules and functions, and the plug-in by the name of a
distribution: ``plugins/lerobot_policy_deas``, which holds nothing but an import of this package's configuration.
"""

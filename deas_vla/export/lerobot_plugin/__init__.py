"""An exported reranker as LeRobot's policy type ``deas``, which LeRobot finds by names: of the distribution
(plugins/lerobot_policy_deas, an import of this package's configuration), of modules and of functions."""

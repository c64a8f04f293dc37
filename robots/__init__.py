"""An exported reranker on an arm: simulated, or any of LeRobot's arms with one servo bus."""

"""What an RL stage would cost on a cluster: a simulation of its rollouts and formulas for the rest of a step."""

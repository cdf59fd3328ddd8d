"""Whether the simulator shows the policy what it was trained on."""

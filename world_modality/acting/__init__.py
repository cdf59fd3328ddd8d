"""From the frames of running episodes to their actions, whoever runs the loop."""

"""The PyTorch trainer. `participant.training.torch.trainer` has its rules."""

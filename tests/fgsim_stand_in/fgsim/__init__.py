"""Stand-in for fgsim, the program that the examples of queueflow's document come from: what they import, no more."""

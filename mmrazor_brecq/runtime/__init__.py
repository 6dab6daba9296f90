"""Speed: compiled kernels, low precision, memory, several processes.

Import its modules directly, so that a tensor function that runs as one kernel
needs no library but torch.
"""

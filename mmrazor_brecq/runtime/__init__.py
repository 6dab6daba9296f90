"""Speed: compiled kernels, low precision, memory, several processes.

Import the modules themselves: a tensor function that runs as one kernel
needs no library but torch.
"""

"""The tables and figures of the DevFT paper (arXiv:2508.00041), one file each."""

"""The engines that `make bench NAME=engine` measures beside ours: how each is installed, fed and started."""

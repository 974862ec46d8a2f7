"""The parts of a virtual engine: its disks, its initramfs, qemu's command line, the running machine."""

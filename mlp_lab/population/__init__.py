"""Many MLPs trained together on one device, each as if it were alone."""

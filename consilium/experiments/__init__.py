"""One YAML file that trains and evaluates members and their ensemble."""

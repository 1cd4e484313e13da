"""Runner classes as their source defines them. Nothing that is read here is imported or run."""

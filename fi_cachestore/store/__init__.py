"""Stores: where sealed entries live, in memory and in directories."""

"""Geometry: from calorimeter images to graphs."""

"""Recipes: read from files, run stage by stage into a run folder, estimated beforehand, compared in studies."""

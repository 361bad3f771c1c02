"""The main job on real input, shown live: real workspaces, real servers, a real subprocess, real faults."""

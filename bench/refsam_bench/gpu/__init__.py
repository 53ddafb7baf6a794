"""Everything that only a GPU can tell, measured in one call (`refsam-bench gpu`).

`measure` leads: each job (`worker`) runs in a process of its own (`isolation`) and tells what
became of each of its steps, so that whatever fails or dies takes nothing else with it.
"""

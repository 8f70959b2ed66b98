"""The load on a server: arrivals, shapes, prompts, traces, and the generator that runs it."""

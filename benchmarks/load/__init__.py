"""What is asked of a server, and when: arrivals, shapes, prompts, traces, and the generator."""

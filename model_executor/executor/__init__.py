"""How a worker is reached: in this process, in a child process, through Ray."""

"""Helpers that tests share: engines, servers, clients, checkpoints and broken inputs."""

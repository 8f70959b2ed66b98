"""Simulates a fleet: the real EngineCore in virtual time, on workers that only take their time."""

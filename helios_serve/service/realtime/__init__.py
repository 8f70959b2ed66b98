"""Realtime sessions: their messages, their requests and their readers."""

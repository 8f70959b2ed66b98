"""Realtime sessions: their messages, their requests and who reads them."""

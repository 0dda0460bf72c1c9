"""Processes of this host: how the launcher starts, ends and hardens them, its own among them.

children            start them and end them, so that none outlives it
stop_signals        be told to stop, where nothing is half done
hardening           keep others of this host out of its memory
"""

"""Plug-ins for engines that people run already. Nothing but the command line imports from here."""

"""The audited readers of foreign files: arrays only, bounded memory; nothing a file names is imported or run.

Files from elsewhere come in through here (SECURITY.md), and no other module loads a pickle. A change here
changes what a hostile file can do; the fuzzing tests of tests/convert hold it.
"""

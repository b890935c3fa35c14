"""quietbeam.cli"""

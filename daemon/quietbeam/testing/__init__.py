"""quietbeam.testing"""

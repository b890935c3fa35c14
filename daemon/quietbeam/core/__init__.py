"""quietbeam.core"""

"""quietbeam.trainer"""

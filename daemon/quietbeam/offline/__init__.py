"""quietbeam.offline"""

"""quietbeam.service"""

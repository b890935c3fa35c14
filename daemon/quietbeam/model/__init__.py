"""quietbeam.model"""

"""quietbeam.pipeline"""

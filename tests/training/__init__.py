"""Tests of training and its data."""

"""Estimators that several stages share: public, tested against published numbers and against plain loops."""

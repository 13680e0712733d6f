"""Evaluation of backbones: functions of features and labels, independent of methods and data sets."""

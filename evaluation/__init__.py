"""What a backbone is worth: functions of features and labels. Knows neither the methods nor the data sets."""

"""Tables to be predicted: metrics, submissions and what they are worth."""

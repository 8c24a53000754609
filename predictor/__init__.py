"""The serving process: audio bytes in, transcript out. Start reading at `predictor.recognizer`."""

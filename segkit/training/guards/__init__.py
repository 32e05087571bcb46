"""What lets a training survive: signals, crashes, lost processes, numbers that are none, too little memory."""

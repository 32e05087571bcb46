"""What lets a training survive: signals, crashes, lost processes, non-finite numbers, too little memory."""

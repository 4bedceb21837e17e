"""The lock that whoever uses the model holds; not reentrant."""

import threading

queue_lock = threading.Lock()

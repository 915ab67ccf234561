"""Files on disk: written aside and renamed, locked, unpacked, and what they hold."""

"""Reading and writing of scans, with the position of their voxels in the patient."""

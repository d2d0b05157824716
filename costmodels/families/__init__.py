"""Families of techniques: one file each, named like its one public function; found by listing this folder."""

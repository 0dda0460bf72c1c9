"""The lab: boots real guests and tampers with them. It is never shipped and nothing imports it but tests."""

"""What the admin types and sees: arguments, progress, the plan, the result, the look at all hosts."""

"""A searchable index over finished vectors."""

SELECT gatepost_changes('todos', organization => 'organization_id');
